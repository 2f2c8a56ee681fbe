"""Rate limits: GCRA, exact within one process."""

from relay.limits.gcra import Allowance
from relay.limits.limiter import SIGNUP_RATE, Limiter, SignupLimiter

__all__ = ["SIGNUP_RATE", "Allowance", "Limiter", "SignupLimiter"]

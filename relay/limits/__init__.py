"""Rate limits: GCRA, exact on one machine, and over several with Redis."""

from relay.limits.gcra import Allowance
from relay.limits.limiter import SIGNUP_RATE, Limiter, SignupLimiter
from relay.limits.opening import Limits, open_limits
from relay.limits.shared import SharedTable

__all__ = ["SIGNUP_RATE", "Allowance", "Limiter", "Limits", "SharedTable", "SignupLimiter", "open_limits"]

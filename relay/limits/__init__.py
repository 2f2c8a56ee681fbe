"""Rate limits: GCRA, exact on one machine, and over several with Redis."""

from relay.limits.factory import Limits, open_limits
from relay.limits.gcra import Decision
from relay.limits.local import SIGNUP_RATE, Limiter, SignupLimiter
from relay.limits.shared_table import SharedTable

__all__ = ["SIGNUP_RATE", "Decision", "Limiter", "Limits", "SharedTable", "SignupLimiter", "open_limits"]

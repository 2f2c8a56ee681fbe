"""Rate limits by GCRA: exact on one machine, shared through Redis across several."""

from relay.limits.factory import Limits, open_limits
from relay.limits.gcra import Decision
from relay.limits.local import SIGNUP_RATE, Limiter, SignupLimiter
from relay.limits.shared_table import SharedTable

__all__ = ["SIGNUP_RATE", "Decision", "Limiter", "Limits", "SharedTable", "SignupLimiter", "open_limits"]

"""Would training fewer layers pay: trials of equal time, and the ``payoff`` in time and in memory."""

from regimes.compare.sampling.payoff import Payoff
from regimes.compare.sampling.would_sampling_pay import would_sampling_pay

__all__ = ["Payoff", "would_sampling_pay"]

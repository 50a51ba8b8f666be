"""How many feature updates: ``rungs`` of a ladder of blocks are trained, a ``verdict`` decides, in words."""

from regimes.compare.updates.feature_updates import FeatureUpdates
from regimes.compare.updates.how_many_feature_updates import how_many_feature_updates

__all__ = ["FeatureUpdates", "how_many_feature_updates"]

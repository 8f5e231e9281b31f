"""Images as uint8 arrays: where they come from, how they are split, what their training statistics are.

`augment`, which needs torch, is imported by name.
"""

from bnexp.data.imageset import ImageSet
from bnexp.data.sources import DATASETS, load_images
from bnexp.data.splits import Split, channel_statistics, channel_sums, split_pool, split_train_val, statistics_of

__all__ = [
    "DATASETS",
    "ImageSet",
    "Split",
    "channel_statistics",
    "channel_sums",
    "load_images",
    "split_pool",
    "split_train_val",
    "statistics_of",
]

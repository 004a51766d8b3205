"""A realistic run for the report's tests: its record, its distilled set, and knobs for the shapes that a page must survive."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from limbeck.data.pixels import scale_space

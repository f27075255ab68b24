"""The one training loop: recovery after pruning, distillation and quantization-aware training all run on it."""

from hasten.training.loop import Epoch, train
from hasten.training.options import Training
from hasten.training.progress import quiet
from hasten.training.validation import mean_score, task_loss
from hasten.training.watch import Watch, watched

__all__ = ["Epoch", "Training", "Watch", "mean_score", "quiet", "task_loss", "train", "watched"]

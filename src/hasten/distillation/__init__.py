"""Distillation machinery: losses between two models' outputs and features, and a teacher whose answers are kept."""

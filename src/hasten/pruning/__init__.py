"""What the pruning techniques share: scores of units, their selection, masks of weights, schedules, sensitivity."""

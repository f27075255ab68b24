"""The one representation: a `torch.fx.GraphModule` of ATen operators, and what can be asked of it or done to it."""

"""One or several artifacts turned into throughput: replicas, batching, scheduling over unequal devices, pipelines."""

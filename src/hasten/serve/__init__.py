"""Serving artifacts over the Open Inference Protocol v2: REST and gRPC, metrics, a status page. Imports no torch."""

"""Everything that knows gRPC or Redis: the gateway, replicas, sessions and the command line."""

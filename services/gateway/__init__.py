"""The gRPC front door: headers to objective, objective to recipe, prompt to tokens, events to messages."""

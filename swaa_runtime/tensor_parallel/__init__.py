"""One model on several devices of one host: rank 0 has the engine, the other ranks are processes that do as it says."""

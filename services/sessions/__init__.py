"""Sessions: token ids and KV state that outlive a request and a replica."""

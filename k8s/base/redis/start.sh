#!/bin/sh
# Writes Redis's users with the hashes of their passwords, as a file: a command line could be read by others.
# `swaa` may do what the session store needs and no more (README, "Sessions"); `ray` what Ray's GCS needs.
set -eu
hash() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
umask 077
cat > /run/redis/users.acl <<ACL
user default off
user swaa on #$(hash "$REDISCLI_AUTH") ~swaa:* +ping +evalsha +eval +time +get +set +strlen +unlink +pttl +pexpire +pexpireat +incrby +decrby +hget +hset +hmget +zadd +zrem +zcount +zscore +zrange +zrevrange +zrangebyscore +zremrangebyscore
user ray on #$(hash "$RAY_PASSWORD") ~RAY* ~DUMMY +@read +@write +@connection -@dangerous +info
ACL
unset REDISCLI_AUTH RAY_PASSWORD
exec redis-server /etc/redis/redis.conf --maxmemory "$MAXMEMORY"

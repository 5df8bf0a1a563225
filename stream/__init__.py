"""The worker: Kafka in, RocksDB beside, lists out."""

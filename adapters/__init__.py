"""Learning: the inner loop, the experts around it and their outer loop. No Kafka, no RocksDB."""

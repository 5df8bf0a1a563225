"""The log ports over librdkafka. Nothing outside of this package imports confluent_kafka."""

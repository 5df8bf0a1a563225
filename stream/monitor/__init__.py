"""`innerloop monitor`: online figures, lag, alarms and scheduled retraining, beside the workers."""

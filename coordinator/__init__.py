"""The server side: asks a cohort, folds their updates into the next global model, keeps the books."""

"""The rules of the lane protocol as small models, explored exhaustively."""

"""Ways of passing messages between processes, each in its best honest form behind one small port."""

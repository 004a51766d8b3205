"""Training: the one loop, its losses, its execution plans, and the students that everything else asks for."""

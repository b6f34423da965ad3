"""One layer through every stage, from its weights to the code that will run: facts and pictures, printed by the cli."""

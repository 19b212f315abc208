"""How the demo model is made: `python -m vellumd.demo.train FOLDER`. The only torch in here."""

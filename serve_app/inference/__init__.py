"""Stage 3, the model: uint8 crops in, class scores and activation maps out. torch; knows no Ray and no HTTP."""

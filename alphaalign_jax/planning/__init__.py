"""What a layout costs on a described TPU, from the programs that training runs, compiled with no TPU present."""

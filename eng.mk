include Makefile

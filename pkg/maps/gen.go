package maps

//go:generate go tool bpf2go -target bpfel -output-stem maps -type next_hop bpf ../../bpf/maps.c -- -mcpu=v3 -Wall -Werror -fno-strict-aliasing

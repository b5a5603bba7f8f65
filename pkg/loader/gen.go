package loader

//go:generate go tool bpf2go -target bpfel -no-global-types tc ../../bpf/tc.c -- -mcpu=v3 -Wall -Werror -fno-strict-aliasing
//go:generate go tool bpf2go -target bpfel -no-global-types xdp ../../bpf/xdp.c -- -mcpu=v3 -Wall -Werror -fno-strict-aliasing
//go:generate go tool bpf2go -target bpfel -no-global-types sweep ../../bpf/sweep.c -- -mcpu=v3 -Wall -Werror -fno-strict-aliasing

// calicoctl reads and changes a Calico cluster's resources and shows how nodes
// and addresses are doing.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"calico-xdp/cmd/calicoctl/command"
)

// Set by the linker: -ldflags "-X main.version=v1.2.3 -X main.commit=0123456789".
var version, commit string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Run(ctx, os.Args[1:], command.Surroundings{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Env:   os.Getenv,
		Build: command.BuildInfo(version, commit),
	})
	stop()
	os.Exit(code)
}

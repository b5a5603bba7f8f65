// Demo shows the product's main job on real traffic: three hosts as network
// namespaces, a calico-node in each with the etcd inside the first, workloads added
// through the CNI plugin, a policy, and what the fabric sees of it all. It fails if
// any of what it expects does not happen.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	bin := flag.String("bin", "bin", "directory of calico-node, calicoctl and calico-cni")
	keep := flag.Bool("keep", false, "leave everything running in the background")
	down := flag.Bool("down", false, "end a demo that was left running")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: demo [flags]   (as root)\n\n"+
			"Three hosts, workloads, a policy and the packets on the wire, in network namespaces.\n\n"+
			"  make demo            show it and clean up\n"+
			"  make demo KEEP=1     show it and leave it running\n"+
			"  make demo-down       end what was left running\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	dir, err := filepath.Abs(*bin)
	switch {
	case err != nil:
	case *down:
		err = endKept()
	case os.Geteuid() != 0:
		err = fmt.Errorf("network namespaces and BPF need root: sudo make demo")
	case os.Getenv(backgroundVar) != "":
		background(dir)
	case *keep:
		err = keepRunning()
	default:
		if failures := show(dir, os.Stdout, false); failures > 0 {
			err = fmt.Errorf("%d expectations failed", failures)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// A demo that is kept lives in a background process of its own, since what it has
// started ends with it. It reports the number of failures on descriptor 3.
const (
	backgroundVar = "CALICO_XDP_DEMO_BACKGROUND"
	pidFile       = "/run/calico-xdp-demo.pid"
)

func keepRunning() error {
	if pid, err := kept(); err == nil {
		return fmt.Errorf("a demo is running already (process %d): make demo-down ends it", pid)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	result, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), backgroundVar+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A pipe of ours, not cmd.Stdout: the process lives on and must not be waited for.
	output, theirOutput, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = theirOutput, theirOutput
	if err := cmd.Start(); err != nil {
		return err
	}
	theirs.Close()
	theirOutput.Close()
	if _, err := io.Copy(os.Stdout, output); err != nil {
		return err
	}
	text, err := io.ReadAll(result)
	if err != nil {
		return err
	}
	failures, err := strconv.Atoi(string(text))
	if err != nil {
		return fmt.Errorf("the demo ended early")
	}
	if failures > 0 {
		return fmt.Errorf("%d expectations failed", failures)
	}
	return cmd.Process.Release()
}

func background(bin string) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	const resultDescriptor = 3
	syscall.CloseOnExec(resultDescriptor) // the daemons live on
	result := os.NewFile(resultDescriptor, "result")
	show(bin, os.Stdout, true, func(failures int) {
		os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())), 0o644)
		fmt.Fprint(result, failures)
		result.Close()
		// Lets go of the terminal.
		if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
			syscall.Dup2(int(null.Fd()), 1)
			syscall.Dup2(int(null.Fd()), 2)
		}
		<-ended
		os.Remove(pidFile)
	})
}

// kept is the process of a demo that was left running.
func kept() (int, error) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != filepath.Base(self) {
		return 0, fmt.Errorf("no demo is running")
	}
	return pid, nil
}

func endKept() error {
	pid, err := kept()
	if err != nil {
		fmt.Println("no demo is running")
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	// Its namespaces are gone when it is.
	for range 300 {
		if syscall.Kill(pid, 0) != nil {
			fmt.Println("the demo has ended and left nothing behind")
			return nil
		}
		pause()
	}
	return fmt.Errorf("process %d does not end", pid)
}

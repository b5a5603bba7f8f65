package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// launch runs fn on a thread that stays in the namespace for the rest of the
// test, so that what it starts can be tied to the test's life: a process with a
// parent death signal gets it when the thread that made it ends.
func (n *Namespace) launch(fn func() error) error {
	n.start.Do(func() {
		entered := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the namespace
			err := unix.Setns(int(n.handle), unix.CLONE_NEWNET)
			entered <- err
			if err != nil {
				return
			}
			for f := range n.launcher {
				f()
			}
		}()
		if err := <-entered; err != nil {
			n.startErr = fmt.Errorf("enter namespace %s: %w", n.Name, err)
		}
	})
	if n.startErr != nil {
		return n.startErr
	}
	result := make(chan error, 1)
	n.launcher <- func() { result <- fn() }
	return <-result
}

// Run executes a command inside the namespace and returns what it wrote, both
// streams together.
func (n *Namespace) Run(command ...string) (string, error) {
	var out bytes.Buffer
	p := exec.Command(command[0], command[1:]...)
	p.Stdout, p.Stderr = &out, &out
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.launch(p.Start); err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	if err := p.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return out.String(), nil
}

// MustRun is Run for commands that have to succeed.
func (n *Namespace) MustRun(t T, command ...string) string {
	t.Helper()
	out, err := n.Run(command...)
	if err != nil {
		t.Fatalf("in %s: %v", n.Name, err)
	}
	return out
}

// Process is a command that runs inside a namespace.
type Process struct {
	Cmd *exec.Cmd

	output lockedBuffer
	done   chan struct{}
	err    error
}

// Start starts a command inside the namespace. It is killed when the test ends,
// and when the test's process dies.
func (n *Namespace) Start(t T, command ...string) *Process {
	t.Helper()
	return n.StartCmd(t, exec.Command(command[0], command[1:]...))
}

// StartCmd is Start for a command that needs an environment or a directory.
// Streams that are set are kept; Output returns the others.
func (n *Namespace) StartCmd(t T, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.output
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// Wait must not hang on a grandchild that keeps the pipe open.
	cmd.WaitDelay = time.Second
	if err := n.launch(cmd.Start); err != nil {
		t.Fatalf("start %s in %s: %v", cmd, n.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.Kill)
	return p
}

// PID is the process's number.
func (p *Process) PID() int { return p.Cmd.Process.Pid }

// Output returns what the process has written so far.
func (p *Process) Output() string { return p.output.String() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.done }

// Kill ends the process by SIGKILL and waits for its end.
func (p *Process) Kill() {
	p.Cmd.Process.Kill() // an error means that it has ended
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.Cmd.Process.Signal(s) }

// Stop sends SIGTERM and returns how the process ended; after the timeout it is
// killed.
func (p *Process) Stop(timeout time.Duration) error {
	p.Cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		p.Kill()
		return errors.New("did not end on SIGTERM, killed")
	}
}

// lockedBuffer is written by the process's pipe and read by the test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

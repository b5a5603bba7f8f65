package bed

import (
	"fmt"
	"slices"

	"calico-xdp/tools/testbed"
)

// Try runs fn with a testbed.T of its own: what fn has made is gone when it returns,
// and what it cannot go on without is the error.
func Try(log func(string), fn func(testbed.T) error) (err error) {
	s := &scope{log: log}
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(failure)
			if !ok {
				s.undo()
				panic(r)
			}
			err = f
		}
		s.undo()
	}()
	return fn(s)
}

type scope struct {
	log      func(string)
	cleanups []func()
}

// failure is what Fatalf panics with.
type failure string

func (f failure) Error() string { return string(f) }

func (s *scope) Helper()                           {}
func (s *scope) Cleanup(undo func())               { s.cleanups = append(s.cleanups, undo) }
func (s *scope) Logf(format string, args ...any)   { s.log(fmt.Sprintf(format, args...)) }
func (s *scope) Fatalf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

func (s *scope) undo() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}

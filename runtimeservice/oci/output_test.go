package oci

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// A process that a command leaves behind with its output open, such as the tee of a shell's process
// substitution, may write shortly after the command has ended.
func TestExecTakesLateOutput(t *testing.T) {
	c := newContainer(t)
	for name, a := range map[string]ExecArgs{
		"soon":                   {Process: shell("(sleep 0.3; echo late; sleep 0.3; echo later) & echo first")},
		"while the container is": {Process: shell("(sleep 2; echo late; echo later) & echo first"), OutputUntil: make(chan struct{})},
	} {
		const want = "first\nlate\nlater\n"
		var out bytes.Buffer
		// A busy machine may need longer than drainGrace for one of the commands, but not for every one.
		for range 10 {
			out.Reset()
			a.Stdout = &out
			code, err := c.do(t, a)
			if err != nil || code != 0 {
				t.Fatalf("%s: exec = %d, %v", name, code, err)
			}
			if out.String() == want {
				break
			}
		}
		if out.String() != want {
			t.Errorf("%s: output %q", name, out.String())
		}
	}
}

// The wait for output ends with the container or with the caller's context.
func TestExecOutputEnds(t *testing.T) {
	c := newContainer(t)
	const script = "echo first; sleep 98764 &"
	gone := make(chan struct{})
	var out bytes.Buffer
	seen := writerFunc(func(p []byte) (int, error) {
		close(gone)
		return out.Write(p)
	})
	if code, err := c.do(t, ExecArgs{Process: shell(script), Stdout: seen, OutputUntil: gone}); err != nil || code != 0 || out.String() != "first\n" {
		t.Errorf("container ended: exec = %d, %v, output %q", code, err, out.String())
	}

	out.Reset()
	p, err := c.Exec(t.Context(), ExecArgs{ID: c.id, Process: shell(script), Stdout: &out, OutputUntil: make(chan struct{})})
	if err != nil {
		t.Fatal(err)
	}
	<-p.exited
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	// The kernel may deliver the two ends in either order. The test checks only that the call ends.
	if code, err := p.Wait(ctx); err == nil && (code != 0 || !strings.HasPrefix(out.String(), "first")) {
		t.Errorf("caller gave up: exec = %d, %v, output %q", code, err, out.String())
	}
}

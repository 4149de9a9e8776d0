package streams

import (
	"testing"

	"go.uber.org/goleak"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

func TestFollowSize(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	sizes, ended := make(chan remotecommand.TerminalSize), make(chan struct{})
	got := make(chan remotecommand.TerminalSize)
	go FollowSize(ended, sizes, func(s remotecommand.TerminalSize) { got <- s })
	sizes <- remotecommand.TerminalSize{Width: 0, Height: 5} // some clients send this first
	want := remotecommand.TerminalSize{Width: 80, Height: 25}
	sizes <- want
	if s := <-got; s != want {
		t.Errorf("size = %v, want %v", s, want)
	}
	close(ended)

	closing := make(chan remotecommand.TerminalSize)
	close(closing)
	FollowSize(nil, closing, nil) // returns
}

func TestCloseAll(t *testing.T) {
	var a, b buffer
	CloseAll(&a, nil, &b)
	if !a.closed || !b.closed {
		t.Errorf("closed: %t, %t", a.closed, b.closed)
	}
}

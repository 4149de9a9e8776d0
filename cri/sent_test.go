package cri

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/sent"
)

// stalled is a client's connection that stops reading after some bytes until it is resumed.
type stalled struct {
	net.Conn
	left   int
	resume chan struct{}
}

func (s *stalled) Read(p []byte) (int, error) {
	if s.left <= 0 {
		<-s.resume
	}
	n, err := s.Conn.Read(p)
	s.left -= n
	return n, err
}

// A large answer counts as sent once the client has taken it, although its call has ended before.
func TestAnswersAreSentWhenTheClientHasThem(t *testing.T) {
	e := start(t, nil)
	ended, taken := make(chan struct{}), make(chan struct{})
	e.runtime.list = func(context.Context) ([]*runtimeapi.Container, error) { return nil, nil }
	e.runtime.version = func(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
		sent.Then(ctx, func() { close(taken) })
		context.AfterFunc(ctx, func() { close(ended) })
		return &runtimeapi.VersionResponse{Version: strings.Repeat("x", 8<<20)}, nil
	}
	resume := make(chan struct{})
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
		return &stalled{Conn: conn, left: 32 << 10, resume: resume}, err
	}
	conn, err := grpc.NewClient("passthrough:///"+e.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	answered := make(chan error, 1)
	go func() {
		_, err := runtimeapi.NewRuntimeServiceClient(conn).Version(t.Context(), &runtimeapi.VersionRequest{})
		answered <- err
	}()
	<-ended
	// Another call takes longer than what follows the end of the first one.
	if _, err := runtimeapi.NewRuntimeServiceClient(e.conn()).ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-taken:
		t.Error("an answer counts as sent before the client has taken it")
	default:
	}
	close(resume)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	<-taken
}

// An error or a small answer counts as sent too.
func TestEveryAnswerIsSent(t *testing.T) {
	e := start(t, nil)
	taken := make(chan struct{}, 2)
	for _, text := range []string{"", "short"} {
		e.runtime.version = func(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
			sent.Then(ctx, func() { taken <- struct{}{} })
			if text == "" {
				panic("no answer")
			}
			return &runtimeapi.VersionResponse{Version: text}, nil
		}
		_, err := runtimeapi.NewRuntimeServiceClient(e.conn()).Version(t.Context(), &runtimeapi.VersionRequest{})
		if (err == nil) != (text != "") {
			t.Errorf("answer %q: %v", text, err)
		}
		<-taken
	}
}

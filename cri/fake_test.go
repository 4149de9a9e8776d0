package cri

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/micarun/mica/internal/patience"
)

// fakeRuntime is a runtime with one container, "c", and one pod, "p". Commands are
// functions in exec below.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	t *testing.T

	version func(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error)
	list    func(context.Context) ([]*runtimeapi.Container, error)
	events  func(runtimeapi.RuntimeService_GetContainerEventsServer) error

	mu    sync.Mutex
	ended []string // sessions whose context has ended
}

type fakeImages struct {
	runtimeapi.UnimplementedImageServiceServer
	none []error // stays empty
	pull func(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error)
}

func (f *fakeImages) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return f.pull(ctx, r)
}

// The kubelet's client calls ImageFsInfo first.
func (f *fakeImages) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func (f *fakeRuntime) Version(ctx context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if f.version != nil {
		return f.version(ctx, r)
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeRuntime) ListContainers(ctx context.Context, _ *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	list, err := f.list(ctx)
	return &runtimeapi.ListContainersResponse{Containers: list}, err
}

func (f *fakeRuntime) StreamContainers(_ *runtimeapi.StreamContainersRequest, s runtimeapi.RuntimeService_StreamContainersServer) error {
	list, err := f.list(s.Context())
	if err != nil {
		return err
	}
	return s.Send(&runtimeapi.StreamContainersResponse{Containers: list})
}

func (f *fakeRuntime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s runtimeapi.RuntimeService_GetContainerEventsServer) error {
	return f.events(s)
}

func check(kind, id, known string) error {
	if id != known {
		return fmt.Errorf("%s %q: %w", kind, id, errdefs.ErrNotFound)
	}
	return nil
}

func (f *fakeRuntime) CheckExec(_ context.Context, id string) error {
	return check("container", id, "c")
}

func (f *fakeRuntime) CheckAttach(_ context.Context, id string) error {
	return check("container", id, "c")
}

func (f *fakeRuntime) CheckPortForward(_ context.Context, id string) error {
	return check("pod", id, "p")
}

type exitCode int

func (c exitCode) Error() string   { return fmt.Sprintf("exited with %d", int(c)) }
func (c exitCode) ExitStatus() int { return int(c) }

func (f *fakeRuntime) ServeExec(ctx context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize,
) error {
	switch cmd[0] {
	case "copy": // copies a given number of bytes
		n, err := strconv.ParseInt(cmd[1], 10, 64)
		if err != nil {
			return err
		}
		_, err = io.CopyN(out, in, n)
		return err
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "which":
		_, err := fmt.Fprintf(out, "in=%t out=%t err=%t resize=%t", in != nil, out != nil, errs != nil, resize != nil)
		return err
	case "both":
		_, _ = io.WriteString(out, "to stdout")
		_, _ = io.WriteString(errs, "to stderr")
		return nil
	case "sizes": // prints two terminal sizes
		for range 2 {
			s := <-resize
			if _, err := fmt.Fprintf(out, "tty=%t %dx%d\n", tty, s.Width, s.Height); err != nil {
				return err
			}
		}
		return nil
	case "exit":
		return fmt.Errorf("exec in container %s: %w", id, exitCode(7))
	case "fail":
		return errors.New("no such file")
	case "panic":
		panic("exec panics")
	case "sleep": // until its context ends
		if out != nil {
			_, _ = io.WriteString(out, "sleeping")
		}
		<-ctx.Done()
		f.end("exec")
		return ctx.Err()
	}
	return fmt.Errorf("unknown command %q", cmd)
}

func (f *fakeRuntime) ServeAttach(ctx context.Context, _ string, in io.Reader, out, _ io.WriteCloser,
	_ bool, _ <-chan remotecommand.TerminalSize,
) error {
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		return err
	}
	if line == "panic\n" {
		panic("attach panics")
	}
	_, err = io.WriteString(out, strings.ToUpper(line))
	return err
}

func (f *fakeRuntime) ServePortForward(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	switch port {
	case 13:
		panic("port 13")
	case 1:
		return errors.New("connection refused")
	}
	line, err := bufio.NewReader(stream).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stream, "%d: %s", port, line)
	return err
}

func (f *fakeRuntime) end(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = append(f.ended, what)
}

func (f *fakeRuntime) execHasEnded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.ended, "exec")
}

// wait bounds what has no time limit of its own, so that a hanging test ends.
func wait() time.Duration { return patience.Of(time.Minute) }

// eventually polls ok until it is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(wait())
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

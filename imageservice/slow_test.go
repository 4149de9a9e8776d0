package imageservice

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/testregistry"
)

// secondRegistry starts another registry with the same layers as the one of e.
func secondRegistry(t *testing.T, e *env, spec imageSpec, name string) (addr string) {
	t.Helper()
	other := *e
	other.registry = testregistry.New(testregistry.Options{})
	server, err := other.registry.Start("127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	other.push(other.build(spec), name, "v1")
	return server.Addr
}

// pullInBackground begins a pull without a waiting caller, and returns after its transfer has
// begun.
func pullInBackground(t *testing.T, e *env, name string, b built) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { _, _ = e.service.Pull(ctx, PullArgs{Ref: e.ref(name)}) }()
	e.await(t, func() bool { return e.requests("GET", b.blobs[0].String()) >= 1 })
}

var bigImage = imageSpec{layers: []layerSpec{{files: []file{{"big", incompressible(1<<20, 40)}}}}}

// A registry that sends a byte from time to time is given up like one that sends none.
func TestTrickleIsGivenUp(t *testing.T) {
	for name, path := range map[string]string{"layer": "/blobs/", "manifest": "/manifests/"} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, func(o *Options) {
				o.StallTimeout, o.Attempts, o.PullTimeout = 500*time.Millisecond, 2, 20*time.Second
			})
			spec := bigImage
			spec.config.Labels = map[string]string{"long": strings.Repeat("x", 10000)}
			b := e.push(e.build(spec), "app", "v1")
			if name == "layer" {
				path += b.blobs[0].String()
			}
			e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: path, Rate: 1})
			_, err := e.service.Pull(t.Context(), PullArgs{Ref: e.ref("app:v1")})
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "slower than") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A slow registry that uses all slots does not delay pulls from another.
func TestSlowRegistryDoesNotHoldOthers(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.TotalConcurrency, o.PullTimeout = 1, 10*time.Second })
	b := e.push(e.build(bigImage), "slow", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: b.blobs[0].String(), Rate: 4 << 10})
	other := secondRegistry(t, e, simple("other"), "app")
	pullInBackground(t, e, "slow:v1", b)
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: other + "/app:v1"}); err != nil {
		t.Error(err)
	}
	e.reopen() // ends the slow pull
}

// A pull that waits for another registry's transfer of the same layer asks its own registry if that
// transfer is slow.
func TestSlowTransferOfAnotherRegistryIsNotAwaited(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.StallTimeout, o.PullTimeout = 600*time.Millisecond, 10*time.Second })
	b := e.push(e.build(bigImage), "slow", "v1")
	e.registry.AddFault(testregistry.Fault{Kind: testregistry.Slow, Path: b.blobs[0].String(), Rate: 8 << 10})
	other := secondRegistry(t, e, bigImage, "app")
	pullInBackground(t, e, "slow:v1", b)
	if _, err := e.service.Pull(t.Context(), PullArgs{Ref: other + "/app:v1"}); err != nil {
		t.Error(err)
	}
	e.reopen() // ends the slow pull
	// One that is fast is awaited: see TestPullsJoin.
}

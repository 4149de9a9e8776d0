package testregistry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/micarun/mica/internal/testregistry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o testregistry.Options) (*testregistry.Registry, *testregistry.Server) {
	t.Helper()
	r := testregistry.New(o)
	s, err := r.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, s
}

func do(t *testing.T, method, url string, header map[string]string, body []byte) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	return resp, data, err
}

// Both storages serve content pushed over HTTP; the one on disk also in a later process.
func TestPushAndPull(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		t.Run(fmt.Sprintf("disk=%v", dir != ""), func(t *testing.T) {
			_, s := start(t, testregistry.Options{Dir: dir})
			blob := []byte("some blob")
			d := digest.FromBytes(blob)
			resp, _, err := do(t, "POST", s.URL+"/v2/ns/app/blobs/uploads/", nil, nil)
			if err != nil || resp.StatusCode != http.StatusAccepted {
				t.Fatal(resp, err)
			}
			location := s.URL + resp.Header.Get("Location")
			if resp, _, err = do(t, "PATCH", location, nil, blob[:4]); err != nil || resp.StatusCode != http.StatusAccepted {
				t.Fatal(resp, err)
			}
			if resp, _, err = do(t, "PUT", location+"?digest="+d.String(), nil, blob[4:]); err != nil || resp.StatusCode != http.StatusCreated {
				t.Fatal(resp, err)
			}
			manifest := []byte(`{"schemaVersion":2}`)
			header := map[string]string{"Content-Type": "application/x-test"}
			if resp, _, err = do(t, "PUT", s.URL+"/v2/ns/app/manifests/v1", header, manifest); err != nil || resp.StatusCode != http.StatusCreated {
				t.Fatal(resp, err)
			}
			if dir != "" {
				_, s = start(t, testregistry.Options{Dir: dir})
			}
			if _, data, err := do(t, "GET", s.URL+"/v2/ns/app/blobs/"+d.String(), nil, nil); err != nil || !bytes.Equal(data, blob) {
				t.Errorf("blob %q, %v", data, err)
			}
			resp, data, err := do(t, "GET", s.URL+"/v2/ns/app/blobs/"+d.String(), map[string]string{"Range": "bytes=5-"}, nil)
			if err != nil || resp.StatusCode != http.StatusPartialContent || string(data) != "blob" {
				t.Errorf("range %v %q, %v", resp, data, err)
			}
			for _, ref := range []string{"v1", digest.FromBytes(manifest).String()} {
				resp, data, err := do(t, "GET", s.URL+"/v2/ns/app/manifests/"+ref, nil, nil)
				if err != nil || !bytes.Equal(data, manifest) || resp.Header.Get("Content-Type") != "application/x-test" {
					t.Errorf("manifest %s: %v %q, %v", ref, resp, data, err)
				}
			}
			if _, data, err := do(t, "GET", s.URL+"/v2/ns/app/tags/list", nil, nil); err != nil || !strings.Contains(string(data), `["v1"]`) {
				t.Errorf("tags %q, %v", data, err)
			}
			if resp, _, err = do(t, "DELETE", s.URL+"/v2/ns/app/manifests/v1", nil, nil); err != nil || resp.StatusCode != http.StatusAccepted {
				t.Fatal(resp, err)
			}
			if resp, _, err := do(t, "HEAD", s.URL+"/v2/ns/app/manifests/v1", nil, nil); err != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("deleted manifest: %v, %v", resp, err)
			}
		})
	}
}

func TestUploadWithWrongDigestIsRefused(t *testing.T) {
	_, s := start(t, testregistry.Options{})
	wrong := digest.FromString("another")
	resp, _, err := do(t, "POST", s.URL+"/v2/app/blobs/uploads/?digest="+wrong.String(), nil, []byte("blob"))
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Fatal(resp, err)
	}
}

func TestNamesDoNotEscapeTheDirectory(t *testing.T) {
	r := testregistry.New(testregistry.Options{Dir: t.TempDir()})
	for _, name := range []string{"../x", "a/../b", "/a", "A", "_tags"} {
		if _, err := r.PutManifest(name, "v1", "", []byte("{}")); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func TestAuth(t *testing.T) {
	basic := "Basic dTpw" // u:p
	for name, c := range map[string]struct {
		auth   testregistry.Auth
		header string
		want   int
	}{
		"open":           {testregistry.Auth{}, "", 404},
		"basic none":     {testregistry.Auth{Username: "u", Password: "p"}, "", 401},
		"basic":          {testregistry.Auth{Username: "u", Password: "p"}, basic, 404},
		"basic wrong":    {testregistry.Auth{Username: "u", Password: "q"}, basic, 401},
		"bearer basic":   {testregistry.Auth{Username: "u", Password: "p", Bearer: true}, basic, 401},
		"bearer forged":  {testregistry.Auth{Username: "u", Password: "p", Bearer: true}, "Bearer token-1", 401},
		"registry token": {testregistry.Auth{RegistryToken: "t"}, "Bearer t", 404},
	} {
		t.Run(name, func(t *testing.T) {
			_, s := start(t, testregistry.Options{Auth: c.auth})
			resp, _, err := do(t, "GET", s.URL+"/v2/app/manifests/v1", map[string]string{"Authorization": c.header}, nil)
			if err != nil || resp.StatusCode != c.want {
				t.Errorf("got %v, %v", resp, err)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789"), 10_000)
	over := make(chan struct{})
	close(over)
	for name, c := range map[string]struct {
		fault  testregistry.Fault
		status int
		length int // of the body
		fails  bool
		equal  bool
	}{
		"reset":    {testregistry.Fault{Kind: testregistry.Reset, At: 50_000}, 200, 0, true, false},
		"truncate": {testregistry.Fault{Kind: testregistry.Truncate, At: 50_000}, 200, 50_000, true, false},
		"short":    {testregistry.Fault{Kind: testregistry.Short, At: 50_000}, 200, 50_000, false, false},
		"corrupt":  {testregistry.Fault{Kind: testregistry.Corrupt, At: 7}, 200, 100_000, false, false},
		"hold":     {testregistry.Fault{Kind: testregistry.Hold, At: 50_000, Until: over}, 200, 100_000, false, true},
		"slow":     {testregistry.Fault{Kind: testregistry.Slow, Rate: 10_000_000}, 200, 100_000, false, true},
		"status":   {testregistry.Fault{Kind: testregistry.Status, Code: 429, RetryAfter: "3"}, 429, 0, false, false},
		"used up":  {testregistry.Fault{Kind: testregistry.Status, Code: 500, Method: "PUT"}, 200, 100_000, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := start(t, testregistry.Options{Faults: []testregistry.Fault{c.fault}})
			d, err := r.PutBlob(blob)
			if err != nil {
				t.Fatal(err)
			}
			resp, data, err := do(t, "GET", s.URL+"/v2/app/blobs/"+d.String(), nil, nil)
			if (err != nil) != c.fails {
				t.Fatalf("error %v", err)
			}
			if resp != nil && resp.StatusCode != c.status {
				t.Errorf("status %d", resp.StatusCode)
			}
			if c.length > 0 && len(data) != c.length {
				t.Errorf("%d bytes", len(data))
			}
			if bytes.Equal(data, blob) != c.equal {
				t.Errorf("content equal: %v", !c.equal)
			}
		})
	}
}

func TestHangEndsWithTheClient(t *testing.T) {
	r, s := start(t, testregistry.Options{Faults: []testregistry.Fault{{Kind: testregistry.Hang}}})
	d, err := r.PutBlob([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/v2/app/blobs/"+d.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.DefaultClient.Do(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// A held response has its beginning at once, and its rest when the test wants it.
func TestHeldResponse(t *testing.T) {
	until := make(chan struct{})
	r, s := start(t, testregistry.Options{Faults: []testregistry.Fault{{Kind: testregistry.Hold, At: 3, Until: until}}})
	d, err := r.PutBlob([]byte("abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(s.URL + "/v2/app/blobs/" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	head := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, head); err != nil || string(head) != "abc" {
		t.Fatalf("beginning %q, %v", head, err)
	}
	close(until)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "def" {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestFaultsAreCounted(t *testing.T) {
	r, s := start(t, testregistry.Options{Faults: []testregistry.Fault{{Kind: testregistry.Status, Code: 500, Skip: 1, Times: 2}}})
	var got []int
	for range 4 {
		resp, _, err := do(t, "GET", s.URL+"/v2/", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.StatusCode)
	}
	if fmt.Sprint(got) != "[200 500 500 200]" {
		t.Errorf("statuses %v", got)
	}
	if n := len(r.Requests()); n != 4 {
		t.Errorf("%d requests recorded", n)
	}
}

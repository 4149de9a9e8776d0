package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"

	"github.com/containerd/errdefs"
)

// Client speaks to the daemon behind one socket. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon that listens on socket. It connects at
// each call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Info asks what the daemon is. As of all methods, the error is
// errdefs.ErrUnavailable if no daemon listens on the socket.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	err := c.call(ctx, http.MethodGet, pathInfo, struct{}{}, &info)
	return info, err
}

// Check asks for everything that is not as it should be.
func (c *Client) Check(ctx context.Context, args CheckArgs) ([]Problem, error) {
	var problems []Problem
	err := c.call(ctx, http.MethodPost, pathCheck, args, &problems)
	return problems, err
}

// Stop makes the daemon end; it returns before that has happened.
func (c *Client) Stop(ctx context.Context, args StopArgs) error {
	return c.call(ctx, http.MethodPost, pathStop, args, &struct{}{})
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://micad"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("no daemon listens on %s: %w", c.socket, errdefs.ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("ask daemon: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
			return fmt.Errorf("decode answer: %w", err)
		}
		return nil
	}
	var f failure
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil || json.Unmarshal(text, &f) != nil || f.Error == "" {
		return fmt.Errorf("ask daemon: %s %s: %s", method, path, resp.Status)
	}
	return errors.New(f.Error)
}

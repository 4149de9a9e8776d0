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

// Client calls the daemon behind one socket. It may be used concurrently. The error of every method
// is errdefs.ErrUnavailable if no daemon listens on the socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client for the daemon that listens on socket. The client opens a connection
// for each call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Info returns information about the daemon.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	err := c.call(ctx, http.MethodGet, pathInfo, struct{}{}, &info)
	return info, err
}

// Check runs a check of the node and returns the problems found.
func (c *Client) Check(ctx context.Context, args CheckArgs) ([]Problem, error) {
	var problems []Problem
	err := c.call(ctx, http.MethodPost, pathCheck, args, &problems)
	return problems, err
}

// Stop requests the daemon to stop and returns before it has exited.
func (c *Client) Stop(ctx context.Context, args StopArgs) error {
	return c.call(ctx, http.MethodPost, pathStop, args, &struct{}{})
}

// Events calls emit for each recent and each running operation. With args.Follow it continues with
// later ones until the daemon exits or ctx ends; neither is an error. An error of emit ends Events
// and is returned.
func (c *Client) Events(ctx context.Context, args EventsArgs, emit func(Event) error) error {
	path := pathEvents
	if args.Follow {
		path += "?follow"
	}
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return answeredError(resp, http.MethodGet, path)
	}
	for lines := json.NewDecoder(resp.Body); ; {
		var m message
		err := lines.Decode(&m)
		switch {
		case err == io.EOF || ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		case m.Failure != nil:
			return errors.New(m.Failure.Error)
		case m.Event == nil:
			continue
		}
		if err := emit(*m.Event); err != nil {
			return err
		}
	}
}

// Profile requests a profile and copies it to w. It takes args.Seconds for some kinds.
func (c *Client) Profile(ctx context.Context, args ProfileArgs, w io.Writer) error {
	data, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	resp, err := c.send(ctx, http.MethodPost, pathProfile, data)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return answeredError(resp, http.MethodPost, pathProfile)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("receive profile: %w", err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	resp, err := c.send(ctx, method, path, data)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
			return fmt.Errorf("decode answer: %w", err)
		}
		return nil
	}
	return answeredError(resp, method, path)
}

// send sends a request. The caller must close the response's body.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://micad"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("no daemon listens on %s: %w", c.socket, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("call daemon: %w", err)
	}
	return resp, nil
}

// answeredError returns the error of a response other than 200.
func answeredError(resp *http.Response, method, path string) error {
	var f failure
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil || json.Unmarshal(text, &f) != nil || f.Error == "" {
		return fmt.Errorf("call daemon: %s %s: %s", method, path, resp.Status)
	}
	return errors.New(f.Error)
}

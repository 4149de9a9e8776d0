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

// Events calls tell with what the daemon did last and with what it is doing, and, if
// asked, with what it does until the daemon ends or ctx does, neither of which is an
// error.
func (c *Client) Events(ctx context.Context, args EventsArgs, tell func(Event) error) error {
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
		if err := tell(*m.Event); err != nil {
			return err
		}
	}
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

// send makes a request. The caller closes the answer's body.
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
		return nil, fmt.Errorf("ask daemon: %w", err)
	}
	return resp, nil
}

// answeredError is the error of an answer that is not 200.
func answeredError(resp *http.Response, method, path string) error {
	var f failure
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil || json.Unmarshal(text, &f) != nil || f.Error == "" {
		return fmt.Errorf("ask daemon: %s %s: %s", method, path, resp.Status)
	}
	return errors.New(f.Error)
}

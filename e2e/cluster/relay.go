package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
)

// Publish makes the API server reachable at a loopback address of the machine, and returns the path
// of a kubeconfig for it. program is an executable that calls Relay if its argument is "relay"; its
// process ends with the cluster.
func (c *Cluster) Publish(ctx context.Context, address, program string) (string, error) {
	a := &authority{dir: c.pki("")}
	if err := a.writeKubeconfig("admin", "kubeconfig", "https://"+address); err != nil {
		return "", err
	}
	running, err := c.Nodes[0].host.find("cluster")
	if err != nil || len(running) > 0 {
		return c.pki("kubeconfig"), err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return "", fmt.Errorf("publish API server: %w", err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		return "", fmt.Errorf("publish API server: %w", err)
	}
	defer socket.Close()
	log, err := os.Create(c.Nodes[0].Log("relay"))
	if err != nil {
		return "", fmt.Errorf("publish API server: %w", err)
	}
	defer log.Close()
	// The socket belongs to the machine's network namespace, and the process runs on the node.
	relay := c.Nodes[0].host.command(context.WithoutCancel(ctx), program, "relay")
	relay.ExtraFiles, relay.Stdout, relay.Stderr = []*os.File{socket}, log, log
	relay.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := relay.Start(); err != nil {
		return "", fmt.Errorf("publish API server: %w", err)
	}
	go func(r *exec.Cmd) { _ = r.Wait() }(relay) // the log shows how it ended
	return c.pki("kubeconfig"), nil
}

// Relay forwards every connection to the socket with descriptor 3 to the API server. It returns
// only on an error.
func Relay() error {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		go func() {
			if err := relay(conn.(*net.TCPConn)); err != nil {
				fmt.Fprintln(os.Stderr, "relay:", err)
			}
		}()
	}
}

// relay copies in both directions until both ends have closed.
func relay(near *net.TCPConn) error {
	defer near.Close()
	conn, err := net.Dial("tcp", server)
	if err != nil {
		return err
	}
	defer conn.Close()
	far := conn.(*net.TCPConn)
	back := make(chan error, 1)
	go func() {
		_, err := io.Copy(near, far)
		back <- errors.Join(err, near.CloseWrite())
	}()
	_, err = io.Copy(far, near)
	return errors.Join(err, far.CloseWrite(), <-back)
}

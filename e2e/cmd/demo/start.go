package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/e2e/node"
)

const podName = "hello"

func start(ctx context.Context, s settings) error {
	fmt.Println("building images (the first time fetches Debian packages)")
	if _, err := images.Prepare(ctx, images.Basic()); err != nil {
		return err
	}
	if err := startRegistry(ctx, s); err != nil {
		return err
	}
	earlier, err := node.Adopt(ctx, s.options())
	if err != nil {
		return err
	}
	if err := earlier.StopDaemon(); err != nil {
		return err
	}
	n, err := node.Start(ctx, s.options())
	if err != nil {
		return err
	}
	fmt.Printf("daemon %d serves %s\n", n.Pid(), n.Socket())
	if err := removeEarlierPod(ctx, n); err != nil {
		return err
	}
	image := s.image
	if image == "" {
		image = s.registry + "/mica/nginx:latest"
	}
	return runPod(ctx, n, image)
}

func removeEarlierPod(ctx context.Context, n *node.Node) error {
	list, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": podName}})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, pod := range list {
		errs = append(errs, n.RemovePod(ctx, pod.Id))
	}
	return errors.Join(errs...)
}

// runPod pulls the image, runs a pod of it and prints its address and log line.
func runPod(ctx context.Context, n *node.Node, image string) error {
	begin := time.Now()
	id, err := n.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: image}, nil, nil)
	if err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	fmt.Printf("pulled %s in %d ms\n       %s\n", image, time.Since(begin).Milliseconds(), id)
	begin = time.Now()
	pod, log, err := createPod(ctx, n, image)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	status, err := n.Runtime.PodSandboxStatus(ctx, pod, false)
	if err != nil {
		return fmt.Errorf("status of pod: %w", err)
	}
	ip := status.Status.GetNetwork().GetIp()
	fmt.Printf("pod %s runs after %d ms with the address %s\n", pod[:12], took.Milliseconds(), ip)
	answer(ctx, ip)
	if line := firstLine(ctx, log); line != "" {
		fmt.Printf("its log: %s\n", line)
	}
	printCommands(n, ip)
	return nil
}

// createPod runs the pod with one container and returns its ID and the path of the container's log.
func createPod(ctx context.Context, n *node.Node, image string) (pod, log string, err error) {
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: podName, Uid: podName, Namespace: "default"},
		Hostname:     podName,
		LogDirectory: filepath.Join(n.Data, "logs"),
		Labels: map[string]string{
			"app": podName,
			// crictl shows these labels, which the kubelet sets.
			"io.kubernetes.pod.name": podName, "io.kubernetes.pod.namespace": "default", "io.kubernetes.container.name": podName,
		},
		Linux: &runtimeapi.LinuxPodSandboxConfig{},
	}
	// A log may exist from an earlier run.
	log = filepath.Join(config.LogDirectory, podName+".log")
	if err := os.RemoveAll(log); err != nil {
		return "", "", err
	}
	if pod, err = n.Runtime.RunPodSandbox(ctx, config, ""); err != nil {
		return "", "", fmt.Errorf("run pod: %w", err)
	}
	container, err := n.Runtime.CreateContainer(ctx, pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: podName},
		Image:    &runtimeapi.ImageSpec{Image: image},
		LogPath:  podName + ".log",
		Labels:   config.Labels,
		Linux:    &runtimeapi.LinuxContainerConfig{},
	}, config)
	if err != nil {
		return "", "", fmt.Errorf("create container: %w", err)
	}
	if err := n.Runtime.StartContainer(ctx, container); err != nil {
		return "", "", fmt.Errorf("start container: %w", err)
	}
	return pod, log, nil
}

// answer prints the answer of the pod's web server, if it has one.
func answer(ctx context.Context, ip string) {
	client := &http.Client{Timeout: time.Second}
	for range 20 {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ip+"/", nil)
		if err != nil {
			return
		}
		response, err := client.Do(request)
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 200))
			_ = response.Body.Close()
			fmt.Printf("GET http://%s/: %s %s\n", ip, response.Status, strings.TrimSpace(string(body)))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// firstLine waits for the first line of the log, for a short time.
func firstLine(ctx context.Context, log string) string {
	for range 50 {
		data, err := os.ReadFile(log)
		if line, _, ok := strings.Cut(string(data), "\n"); err == nil && ok {
			return line
		}
		select {
		case <-ctx.Done():
			return ""
		case <-time.After(100 * time.Millisecond):
		}
	}
	return ""
}

func printCommands(n *node.Node, ip string) {
	fmt.Printf(`
The node runs until `+"`make stop`"+`. Next steps:
  curl http://%[1]s/
  %[2]s/mica --config %[3]s info
  %[2]s/mica --config %[3]s check
  crictl --runtime-endpoint unix://%[4]s ps
  crictl --runtime-endpoint unix://%[4]s exec -it CONTAINER sh
  tail -f %[5]s
`, ip, n.Bin, n.Config(), n.Socket(), n.Log)
}

# cordon, drain with a disruption budget, taint, top's absence said plainly.

$ kubectl create deployment web --image=busybox:1 --replicas=1 -- sleep 3600
deployment.apps/web created
$ kubectl patch deployment web -p '{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":0}}}}'
deployment.apps/web patched
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ kubectl create pdb web --selector=app=web --min-available=1
poddisruptionbudget.policy/web created
$~ kubectl get pdb web
NAME   MIN AVAILABLE   MAX UNAVAILABLE   ALLOWED DISRUPTIONS   AGE
web    1               N/A               0                     [..]
$ NODE=$(kubectl get nodes -o name); kubectl cordon $NODE
node/[..] cordoned
$ kubectl get nodes --no-headers
[..]Ready,SchedulingDisabled[..]
$ NODE=$(kubectl get nodes -o name); kubectl drain $NODE --ignore-daemonsets --pod-selector=app=web --timeout=10s 2>&1 | grep -m1 -o "Cannot evict pod as it would violate the pod's disruption budget."
Cannot evict pod as it would violate the pod's disruption budget.
$ kubectl patch pdb web --type=merge -p '{"spec":{"minAvailable":0}}'
poddisruptionbudget.policy/web patched
$~ kubectl get pdb web -o jsonpath='{.status.disruptionsAllowed}'
1
$ NODE=$(kubectl get nodes -o name); kubectl drain $NODE --ignore-daemonsets --pod-selector=app=web --timeout=60s | tail -1
node/[..] drained
$~ kubectl get pods -l app=web --no-headers
web-[..]   0/1   Pending   0     [..]
$~ kubectl events --types=Warning | grep -c '1 node(s) were unschedulable'
1
$ NODE=$(kubectl get nodes -o name); kubectl uncordon $NODE
node/[..] uncordoned
$ kubectl rollout status deployment/web --timeout=90s | tail -1
deployment "web" successfully rolled out
$ NODE=$(kubectl get nodes -o name); kubectl taint node ${NODE#node/} example.com/key=value:NoSchedule
node/[..] tainted
$ kubectl run p --image=nginx:1 --restart=Never
pod/p created
$~ kubectl events --for pod/p --types=Warning | grep -c 'untolerated taint'
1
$ NODE=$(kubectl get nodes -o name); kubectl taint node ${NODE#node/} example.com/key-
node/[..] untainted
$ kubectl wait --for=condition=Ready pod/p --timeout=60s
pod/p condition met
$ NODE=$(kubectl get nodes -o name); kubectl taint node ${NODE#node/} bad=x:Wrong
? 1
error: invalid taint effect: Wrong, unsupported taint effect
See 'kubectl taint -h' for help and examples
$ NODE=$(kubectl get nodes -o name); kubectl drain $NODE --pod-selector=run=p --timeout=5s 2>&1 | grep -m1 -o 'cannot delete Pods that declare no controller'; kubectl uncordon $NODE >/dev/null
cannot delete Pods that declare no controller
$ kubectl label $(kubectl get nodes -o name) example.com/zone=a
node/[..] labeled
$ kubectl label $(kubectl get nodes -o name) example.com/zone-
node/[..] unlabeled

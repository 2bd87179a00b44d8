# StatefulSets and DaemonSets: rollout, scale, what is shown of them, and their history.

$ echo '{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {serviceName: db, replicas: 2, selector: {matchLabels: {app: db}},
>   template: {metadata: {labels: {app: db}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "nginx:1"}]}}}}' | kubectl apply -f -
statefulset.apps/db created
$ kubectl rollout status sts/db --timeout=110s | tail -1
partitioned roll out complete: 2 new pods have been updated...
$ kubectl get sts db
NAME   READY   AGE
db     2/2     [..]
$ kubectl get sts db -o wide
NAME   READY   AGE   CONTAINERS   IMAGES
db     2/2     [..]   c            nginx:1
$ kubectl get pods -l app=db -o custom-columns=NAME:.metadata.name,INDEX:.metadata.labels.apps\\.kubernetes\\.io/pod-index,HOST:.spec.hostname,SUB:.spec.subdomain
NAME   INDEX   HOST   SUB
db-0   0       db-0   db
db-1   1       db-1   db
$ kubectl scale sts/db --replicas=3
statefulset.apps/db scaled
$~ kubectl get sts db --no-headers
db    3/3   [..]
$ kubectl annotate sts/db kubernetes.io/change-cause='version two'
statefulset.apps/db annotated
$ kubectl set image sts/db c=nginx:2
statefulset.apps/db image updated
$ kubectl rollout status sts/db --timeout=110s | tail -1
partitioned roll out complete: 3 new pods have been updated...
$ kubectl rollout history sts/db
statefulset.apps/db 
REVISION  CHANGE-CAUSE
1         <none>
2         version two

$ kubectl rollout history sts/db --revision=2
statefulset.apps/db with revision #2
Pod Template:
  Labels:	app=db
  Containers:
   c:
    Image:	nginx:2
    Port:	<none>
    Host Port:	<none>
    Environment:	<none>
    Mounts:	<none>
  Volumes:	<none>
  Node-Selectors:	<none>
  Tolerations:	<none>

$ kubectl rollout undo sts/db
Warning: resource statefulsets/db was previously managed[..]
statefulset.apps/db rolled back
$ kubectl rollout undo sts/db --to-revision=77
? 1
Warning: resource statefulsets/db was previously managed[..]
error: unable to find specified revision 77 in history
$ kubectl rollout status sts/db --timeout=110s | tail -1
partitioned roll out complete: 3 new pods have been updated...
$ kubectl get controllerrevisions --sort-by=.revision
NAME[..]CONTROLLER[..]REVISION   AGE
db-[..]   statefulset.apps/db   2          [..]
db-[..]   statefulset.apps/db   3          [..]
$ kubectl rollout restart sts/db
statefulset.apps/db restarted
$ kubectl rollout status sts/db --timeout=110s | tail -1
partitioned roll out complete: 3 new pods have been updated...
$ kubectl patch sts db -p '{"spec":{"serviceName":"other"}}'
? 1
The StatefulSet "db" is invalid: spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden
$ kubectl describe sts db | grep -E '^(Name:|Replicas|Update Strategy|  Partition|Pods Status)'
Name:               db
Replicas:           3 desired | 3 total
Update Strategy:    RollingUpdate
  Partition:        0
Pods Status:        3 Running / 0 Waiting / 0 Succeeded / 0 Failed
$~ kubectl events --for sts/db | grep -o 'Create Pod db-2 in StatefulSet db successful' | sort -u
Create Pod db-2 in StatefulSet db successful
$ kubectl delete sts db
statefulset.apps "db" deleted from [..] namespace
$ echo '{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: agent}, spec: {selector: {matchLabels: {app: agent}},
>   template: {metadata: {labels: {app: agent}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "nginx:1"}]}}}}' | kubectl apply -f -
daemonset.apps/agent created
$ kubectl rollout status ds/agent --timeout=110s | tail -1
daemon set "agent" successfully rolled out
$ kubectl get ds agent
NAME    DESIRED   CURRENT   READY   UP-TO-DATE   AVAILABLE   NODE SELECTOR   AGE
agent   1         1         1       1            1           <none>          [..]
$ kubectl set image ds/agent c=nginx:2
daemonset.apps/agent image updated
$ kubectl rollout status ds/agent --timeout=110s | tail -1
daemon set "agent" successfully rolled out
$ kubectl rollout history ds/agent
daemonset.apps/agent 
REVISION  CHANGE-CAUSE
1         <none>
2         <none>

$ kubectl rollout undo ds/agent
Warning: resource daemonsets/agent was previously managed[..]
daemonset.apps/agent rolled back
$ kubectl rollout status ds/agent --timeout=110s | tail -1
daemon set "agent" successfully rolled out
$ kubectl rollout restart ds/agent
daemonset.apps/agent restarted
$ kubectl rollout status ds/agent --timeout=110s | tail -1
daemon set "agent" successfully rolled out
$ kubectl describe ds agent | grep -E '^(Name:|Desired|Current|Number|Pods)'
Name:           agent
Desired Number of Nodes Scheduled: 1
Current Number of Nodes Scheduled: 1
Number of Nodes Scheduled with Up-to-date Pods: 1
Number of Nodes Scheduled with Available Pods: 1
Number of Nodes Misscheduled: 0
Pods Status:  1 Running / 0 Waiting / 0 Succeeded / 0 Failed
$ kubectl delete ds agent
daemonset.apps "agent" deleted from [..] namespace

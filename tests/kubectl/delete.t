# delete: selectors, all, cascades, dry run, finalizers, wait.

$ for i in 1 2 3 4; do kubectl create cm c$i; kubectl label cm c$i n=$i all=yes >/dev/null; done
configmap/c1 created
configmap/c2 created
configmap/c3 created
configmap/c4 created
$ kubectl delete cm c1 --dry-run=server
configmap "c1" deleted from [..] namespace (server dry run)
$ kubectl delete cm c1 --dry-run=client
configmap "c1" deleted from [..] namespace (dry run)
$ kubectl delete cm c1
configmap "c1" deleted from [..] namespace
$ kubectl delete cm c1
? 1
Error from server (NotFound): configmaps "c1" not found
$ kubectl delete cm c1 --ignore-not-found
$ kubectl delete cm -l n=2 -o name
configmap/c2
$ kubectl delete cm --field-selector metadata.name=c3
configmap "c3" deleted from [..] namespace
$ kubectl delete cm --all
configmap "c4" deleted from [..] namespace
configmap "kube-root-ca.crt" deleted from [..] namespace
$~ kubectl get cm -o name
configmap/kube-root-ca.crt
$ kubectl delete cm
? 1
error: resource(s) were provided, but no name was specified

$ kubectl create deployment web --image=nginx:1 --replicas=1
deployment.apps/web created
$~ kubectl get replicaset -l app=web -o name
replicaset.apps/web-[..]
$ kubectl delete deployment web --cascade=orphan
deployment.apps "web" deleted from [..] namespace
$~ kubectl get replicaset -l app=web -o jsonpath='{.items[*].metadata.ownerReferences}'
$ kubectl get replicaset -l app=web -o name
replicaset.apps/web-[..]
$ kubectl delete replicaset -l app=web --cascade=foreground
replicaset.apps "web-[..]" deleted from [..] namespace
$~ kubectl get pods -l app=web
No resources found in [..] namespace.
$ kubectl create deployment bg --image=nginx:1
deployment.apps/bg created
$ kubectl delete deployment bg --cascade=background
deployment.apps "bg" deleted from [..] namespace
$~ kubectl get replicaset,pods -l app=bg
No resources found in [..] namespace.

$ kubectl create -f - <<E
> {apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.com/hold]}}
> E
configmap/held created
$ kubectl delete cm held --wait=false
configmap "held" deleted from [..] namespace
$ kubectl get cm held -o jsonpath='{.metadata.deletionTimestamp}' | grep -c T
1
$ kubectl delete cm held --timeout=1s
? 1
configmap "held" deleted from [..] namespace
error: timed out waiting for the condition on configmaps/held
$ kubectl patch cm held --type=json -p '[{"op":"add","path":"/metadata/finalizers/-","value":"example.com/more"}]'
? 1
The ConfigMap "held" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{"example.com/more"}
$ kubectl patch cm held --type=merge -p '{"metadata":{"finalizers":null}}'
configmap/held patched
$ kubectl get cm held --ignore-not-found
$ kubectl run p --image=busybox:1 --restart=Never --command -- sh -c 'trap "" TERM; sleep 3600'
pod/p created
$ kubectl wait --for=condition=Ready pod/p --timeout=60s
pod/p condition met
$ kubectl delete pod p --grace-period=1
pod "p" deleted from [..] namespace
$ kubectl run p --image=nginx:1 --restart=Never
pod/p created
$ kubectl delete pod p --force
Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.
pod "p" force deleted from [..] namespace
$ kubectl delete --raw /api/v1/namespaces/$NS/configmaps/none
? 1
Error from server (NotFound): configmaps "none" not found
$ kubectl delete pods,services --all
No resources found

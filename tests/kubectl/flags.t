# Flags that the other transcripts do not need: files with templates, several objects at once, raw requests.

$ for n in one two; do kubectl create cm $n --from-literal=key=$n >/dev/null; kubectl label cm $n set=x >/dev/null; done
$ printf '{.metadata.name} {.data.key}' > path; kubectl get cm one -o jsonpath-file=path
one one
$ printf '{{.metadata.name}}-{{.data.key}}' > template; kubectl get cm one -o go-template-file=template; echo; kubectl get cm two -o templatefile=template
one-one
two-two
$ printf 'NAME          KEY\nmetadata.name data.key\n' > columns; kubectl get cm -l set=x -o custom-columns-file=columns
NAME   KEY
one    one
two    two
$ kubectl get cm one -o jsonpath-as-json='{.data}'
[
    {
        "key": "one"
    }
]
$ kubectl get cm -l set=x -o kyaml | grep -c 'key: "one"'
1
$ kubectl get cm -l set=x --server-print=false
NAME   AGE
one    [..]
two    [..]
$ kubectl get cm,secrets -l set=x -o name
configmap/one
configmap/two
$ w=$(mktemp); kubectl get cm one -w --output-watch-events --no-headers >$w & until [ -s $w ]; do sleep 0.1; done; kill $!; cat $w; rm $w
ADDED      one   1     [..]

# One change for many objects, and lists of what is there.

$ kubectl annotate cm -l set=x note=a
configmap/one annotated
configmap/two annotated
$ kubectl annotate cm one note=b
? 1
error: --overwrite is false but found the following declared annotation(s): 'note' already has a value (a)
$ kubectl annotate cm one note=b --overwrite
configmap/one annotated
$ kubectl annotate cm one --list | grep note
note=b
$ kubectl annotate cm -l set=x note- --dry-run=server
configmap/one annotated (server dry run)
configmap/two annotated (server dry run)
$ kubectl annotate cm --all -l set=x note-
? 1
error: cannot set --all and --selector at the same time
$ kubectl label cm --all more=1 --field-selector metadata.name=two
? 1
error: cannot set --all and --field-selector at the same time
$ kubectl label cm one set=y --resource-version=1
? 1
error: 'set' already has a value (x), and --overwrite is false
$ kubectl label cm one two --list
Listing labels for ConfigMap./one:
 set=x
Listing labels for ConfigMap./two:
 set=x

# What was applied last can be seen, set and edited.

$ printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: last}\ndata: {a: first}\n' > last.yaml; kubectl create -f last.yaml
configmap/last created
$ kubectl apply view-last-applied -f last.yaml
? 1
error: error when no last-applied-configuration annotation found on resource: last
 "last.yaml": <nil>
$ kubectl apply set-last-applied -f last.yaml
? 1
error: no last-applied-configuration annotation found on resource: last, to create the annotation, run the command with --create-annotation
$ kubectl apply set-last-applied -f last.yaml --create-annotation
configmap/last configured
$ EDITOR='sed -i s/first/second/' kubectl apply edit-last-applied cm last
configmap/last edited
$ kubectl apply view-last-applied cm/last -o json | grep -c '"a": "second"'
1
$ kubectl create -f last.yaml --save-config --dry-run=client -o jsonpath='{.metadata.annotations}' | grep -c last-applied-configuration
1

# A set of objects that is applied and pruned together.

$ mkdir many; for n in a b; do printf "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: set-$n}\n" > many/$n.yaml; done; KUBECTL_APPLYSET=true kubectl apply -f many --prune --applyset=together -n $NS
configmap/set-a created
configmap/set-b created
$ rm many/b.yaml; KUBECTL_APPLYSET=true kubectl apply -f many --prune --applyset=together -n $NS
configmap/set-a unchanged
configmap/set-b pruned
$ kubectl get secret together -o jsonpath='{.metadata.annotations.applyset\.kubernetes\.io/contains-group-kinds}'
ConfigMap

# Folders, lists and standard input are all the same.

$ kubectl delete -f many
configmap "set-a" deleted from [..] namespace
$ cat last.yaml | kubectl replace -f -
configmap/last replaced
$ kubectl get -f last.yaml -o name
configmap/last
$ kubectl delete -f - --wait=false <<E
> apiVersion: v1
> kind: List
> items:
> - {apiVersion: v1, kind: ConfigMap, metadata: {name: last}}
> - {apiVersion: v1, kind: ConfigMap, metadata: {name: none}}
> E
? 1
configmap "last" deleted from [..] namespace
Error from server (NotFound): error when deleting "STDIN": configmaps "none" not found

# Requests as they are.

$ printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"raw"}}' > raw.json; kubectl create --raw /api/v1/namespaces/$NS/configmaps -f raw.json | grep -o '"name":"raw"'
"name":"raw"
$ kubectl replace --raw /api/v1/namespaces/$NS/configmaps/raw -f raw.json | grep -c resourceVersion
1
$ kubectl delete --raw /api/v1/namespaces/$NS/configmaps/raw | grep -o '"status":"Success"'
"status":"Success"

# Environment from objects, several templates at once, and nothing but the plan of it.

$ kubectl create deployment a --image=x:1 --replicas=0; kubectl create deployment b --image=x:1 --replicas=0
deployment.apps/a created
deployment.apps/b created
$ kubectl set env deployment/a --from=configmap/one --prefix=P_
Warning: key key transferred to KEY
deployment.apps/a env updated
$ kubectl get deployment a -o jsonpath='{.spec.template.spec.containers[0].env[0].name} {.spec.template.spec.containers[0].env[0].valueFrom.configMapKeyRef.name}'
P_KEY one
$ kubectl set image deployment --all '*=x:2'
deployment.apps/a image updated
deployment.apps/b image updated
$ kubectl scale deployment a b --replicas=0 --current-replicas=0
deployment.apps/a scaled
deployment.apps/b scaled
$ kubectl set resources deployment a --limits=cpu=1 --dry-run=client -o jsonpath='{.spec.template.spec.containers[0].resources}'
{"limits":{"cpu":"1"}}
$ printf 'spec: {minReadySeconds: 3}' > patch.yaml; kubectl patch deployment a --patch-file patch.yaml -o jsonpath='{.spec.minReadySeconds}'
3
$ kubectl wait --for=jsonpath='{.spec.replicas}'=0 deployment/a deployment/b --timeout=60s
deployment.apps/a condition met
deployment.apps/b condition met
$ kubectl get deployments --sort-by='{.metadata.name}' -o jsonpath='{.items[*].metadata.name}'
a b
$ kubectl delete deployment a b --now
deployment.apps "a" deleted from [..] namespace
deployment.apps "b" deleted from [..] namespace
$ kubectl explain deployments --api-version=apps/v1 | head -2
GROUP:      apps
KIND:       Deployment
$ kubectl api-resources --verbs=list --namespaced -o name --categories=all | grep -c '^pods$'
1

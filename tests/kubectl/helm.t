# Helm 4: create, install, upgrade, conflict, rollback, test hooks, uninstall, and a chart of many kinds.

$ helm create chart
Creating chart
$ sed -i 's|tag: ""|tag: "1"|' chart/values.yaml; sed -i 's|image: busybox|image: busybox:1|' chart/templates/tests/*.yaml; helm lint chart | tail -1
1 chart(s) linted, 0 chart(s) failed
$ helm install rel chart --wait --timeout=90s | grep -E '^(NAME|STATUS|REVISION)'
NAME: rel
NAMESPACE: [..]
STATUS: deployed
REVISION: 1
$ helm list -q
rel
$ helm test rel --timeout=90s | grep -E '^(Phase|STATUS)'
STATUS: deployed
Phase:          Succeeded
$ helm upgrade rel chart --set replicaCount=2 --wait --timeout=90s | grep -E '^(STATUS|REVISION)'
STATUS: deployed
REVISION: 2
$ kubectl get deployment -o jsonpath='{.items[0].spec.replicas}'
2
$ helm history rel --max=5 -o json | tr -d ' ' | grep -o '"revision":[0-9]*,[^}]*"status":"[a-z]*"' | sed 's/"updated":"[^"]*",//'
"revision":1,"status":"superseded"
"revision":2,"status":"deployed"
$ kubectl scale deployment/rel-chart --replicas=3
deployment.apps/rel-chart scaled
$ helm upgrade rel chart --set replicaCount=4 2>&1 | grep -o 'conflict[a-z]*' | head -1
conflict
$ helm upgrade rel chart --set replicaCount=1 --force-conflicts --wait --timeout=90s | grep -E '^REVISION'
REVISION: [..]
$ kubectl get deployment -o jsonpath='{.items[0].spec.replicas}'
1
$ helm rollback rel 1 --force-conflicts --wait --timeout=90s
Rollback was a success! Happy Helming!
$ helm get manifest rel | grep -c '^kind: Deployment'
1
$ helm uninstall rel --wait
release "rel" uninstalled
$ kubectl get deployments,services,serviceaccounts -l app.kubernetes.io/instance=rel
No resources found in [..] namespace.
$ helm install rel none
? 1
Error: [..]
$ mkdir -p many/templates; printf 'apiVersion: v2\nname: many\nversion: 1.0.0\n' > many/Chart.yaml; cp $KINDS many/templates/; helm install many many | grep STATUS
STATUS: deployed
$ helm get manifest many | grep -c ^kind:
20
$ helm status many -o json | grep -o '"status":"deployed"'
"status":"deployed"
$ helm upgrade many many --set x=1 | grep REVISION
REVISION: 2
$ helm uninstall many
release "many" uninstalled
